"""Two models compared by people who do not know which answer is whose."""
