"""Post-training of language models: `update_step(state, batch) -> (state, metrics)`."""
