"""MTCNN: from pictures to faces with five landmarks."""
