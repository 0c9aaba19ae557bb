"""The repository on the NAS: is it the right one, partial directories, publishing, manifests."""
