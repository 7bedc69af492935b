"""The dual-branch FSQ video tokenizer: frames to codes and back."""
