"""The methods: where the weights are while a gradient is taken. One short file each, equation first."""
