"""The offline demo: a sentence generator, a small pretrained encoder and the run that puts them together."""
