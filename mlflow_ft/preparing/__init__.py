"""From sources to proved data: read, converted, checked, tokenised, proved, split."""
