"""Images and ground truth of a tree as PASCAL VOC has it."""
