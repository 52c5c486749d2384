"""Base model with LoRA, and the head that gives the nll of each response token without holding all logits."""
