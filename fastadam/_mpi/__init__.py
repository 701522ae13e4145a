"""What fastadam.mpi is made of: an optimizer whose state and steps the ranks of an MPI job share."""
