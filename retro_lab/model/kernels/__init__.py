"""Hand-written autograd: what the model computes, with less memory and in less time than torch would by itself.

Each file says in its first lines the formula that it computes. To read the model beside the paper, the formulas are
enough.
"""
