"""Chat templates as the well-known families render, written anew for the tests, and by hand what each of them writes.

Of every family there are two descriptions that know nothing of each other: `jinja`, which the code under test renders,
and `write`, plain Python that says which text is whose.
"""

from tests.engine.templates import chatml, deepseek, gemma, llama, mistral, others, qwen

FAMILIES = {
    **chatml.FAMILIES,
    **qwen.FAMILIES,
    **llama.FAMILIES,
    **mistral.FAMILIES,
    **gemma.FAMILIES,
    **deepseek.FAMILIES,
    **others.FAMILIES,
}
