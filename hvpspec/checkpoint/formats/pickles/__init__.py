"""What pickles of torch.save hold, and how it is read without running anything in them."""
