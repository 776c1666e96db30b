"""What a build of the documentation adds to its pages: the options of all builders, and formulas as MathML."""
