"""The parts of scripts/train_mllama_easyvqa.py: shape, data and the two stages of training of mllama-easyvqa."""
