"""How the tasks train their networks: losses, augmentation, and what an epoch is judged by."""
