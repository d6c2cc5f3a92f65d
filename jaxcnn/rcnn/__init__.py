"""R-CNN's training after the network: features of all proposals, SVMs, and regressions of boxes, in stages that resume.

Girshick et al. 2014. The constants are those of the authors' code, github.com/rbgirshick/rcnn, and stand beside what
they belong to.
"""
