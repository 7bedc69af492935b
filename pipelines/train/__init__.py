"""Training jobs: tokenizer, world model, student and teacher judge."""
