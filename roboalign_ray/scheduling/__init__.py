"""Pure scheduling decisions of the alignment loop: staleness, deadlines, experience buffer, back-pressure, prompts."""
