"""Images that are files of a folder, a glob or a bucket."""
