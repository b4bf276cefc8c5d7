"""What other photo programs keep about a photo: ratings in XMP and EXIF, in the file or in a sidecar beside it.

* `xmp` reads the properties of an XMP packet and sets some of them, every other byte left as it is;
* `ratings` finds the sidecars of an image, reads its rating from them and from the image, and writes scores;
* `transfer` copies, moves and links images together with their sidecars, and undoes it.

An image is never written to.
"""
