"""Not vLLM: a stand-in for it in fast tests, which speaks its protocol."""
