"""The backbone with LoRA, and the head that gives the nll of each response token without ever holding the logits."""
