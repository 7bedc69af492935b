"""The dual-branch FSQ video tokenizer: it turns frames into codes and back."""
