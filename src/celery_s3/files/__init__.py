"""Files as results and as arguments: an :class:`S3File` is uploaded, and a pointer to it travels.

What is in which module::

    file        S3File: local until it is uploaded, then a handle
    content     where its content is: here, in S3, or nowhere
    source      what is uploaded: a path, or a file object
    pointer     what travels in a result or a message
    objects     the objects that hold the files of one backend: writing, reading, deleting them
    of_tasks    the files of a backend's tasks: how many each has uploaded, deleting them with the result
    reading     pieces in order, checked against size and SHA-256; the reader over them
    whose       which task a file goes with, and which backend it goes to and comes from

Its public name is ``celery_s3.S3File``. Every process that has kombu decodes pointers, workers' main processes too:
nothing but the standard library, kombu and Celery is imported for that.
"""
