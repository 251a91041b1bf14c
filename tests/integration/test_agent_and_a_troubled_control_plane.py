"""The control plane is restarted, wiped, slow, angry or gone: facts reach it in the end, and the host is not disturbed."""
