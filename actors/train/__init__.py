"""Fine-tuning: a coordinator and trainer shards, as actors."""
