"""One step after another: the batch's tensors, the forward pass, drawing tokens."""
