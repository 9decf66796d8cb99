"""The compiled engine: the same models, translated to machine code, with the same trace bit for bit.

`core` is the engine itself, in the subset of Python that models are written in; `translate` turns it and the models'
processes into LLVM's language; `layout` puts the objects they work on into one flat memory; `engine` drives a run.
"""
