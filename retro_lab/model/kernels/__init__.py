"""Hand-written autograd: the model's operations, with less memory and time than torch would take by itself.

Each file begins with the formula that it computes. The formulas are enough to read the model beside the paper.
"""
