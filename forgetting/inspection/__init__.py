"""What a score store holds, for a reader: ranks of tokens and the selections that follow from them."""
