"""A model measured: held-out losses and answers, paired tests, and how near one form of it is to another."""
