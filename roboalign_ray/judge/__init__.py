"""The judge: what a good robot video is, labelled pairs to learn it from, and who gives the labels."""
