"""Images in tar files, as WebDataset's shards have them."""
