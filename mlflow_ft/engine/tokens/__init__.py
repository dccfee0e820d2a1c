"""From text to tokens: tokenizer, chat template, and the mask that says what is learned."""
