"""What needs torch, transformers or a running vLLM; imported when a model is served."""
