"""Images and ground truth of a COCO file."""
