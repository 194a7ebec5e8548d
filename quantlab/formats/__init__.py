"""Formats: what lies in a checkpoint's files, and how to compute with it.

    packing    int4 codes in bytes, as ModelOpt lays them out
    layers     linear layers that compute with FP8 codes or int4 weights, and an FP8 key/value cache
    names      what a tensor is called on disk and in the model
    seeing     the processor that makes numbers of a picture
    eight_bit  more layers, with 8-bit activations
    fp4        NVFP4 in blocks of 16
    declared   what a checkpoint says of itself
    readers    one layer out of its tensors
    modelopt   a ModelOpt unified Hugging Face export -> a transformers model made of those layers

Transformers' own `from_pretrained` on a ModelOpt FP8 export only warns and computes garbage, and an AWQ file whose
`pre_quant_scale` is left unapplied loads everywhere without complaint. So the rule here is: every tensor of the file
is used, every quantized layer has all its scales, or the checkpoint is Broken.
"""
