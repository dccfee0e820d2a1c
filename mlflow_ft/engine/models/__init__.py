"""The base model: loaded, sized up, generating, and what is special about its kind."""
