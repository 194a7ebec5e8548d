"""Calibrate: a model and a recipe -> a checkpoint that is proven to be what was meant.

samples    text and chats -> token ids, with a digest
modelopt   quantize and export; the only file that imports modelopt
spared     libraries that come with modelopt and stay out
probe      what the calibrated model computes on a few tokens, kept beside the export
damage     what quantizing did to each layer
verify     the export held against the recipe, the source weights and the probe
"""
