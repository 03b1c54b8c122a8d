"""The map job: images in, one row each out, shard by shard."""
