"""What torch's operations do not do fast enough, in C++. Each has a twin in torch, which is used where this is not."""
