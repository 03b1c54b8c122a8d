"""The driver of a map job: which worker gets which shard, and what the death of one means."""
