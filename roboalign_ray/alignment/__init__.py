"""The mathematics of alignment: advantages, KL estimators, GRPO."""
