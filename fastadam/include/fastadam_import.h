/* Gets fastadam's table of C functions in an extension module. Needs Python.h; Py_LIMITED_API is fine. */
#ifndef FASTADAM_IMPORT_H
#define FASTADAM_IMPORT_H

#include <Python.h>
#include "fastadam_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Call it once, with the GIL, when your module is imported: it imports fastadam. NULL with an exception set if that is not
 * there, or is older than this header. */
static inline const fastadam_api *fastadam_import(void)
{
    PyObject *module = PyImport_ImportModule("fastadam"); /* PyCapsule_Import would hide why it does not import */
    const fastadam_api *api = module ? (const fastadam_api *)PyCapsule_Import(FASTADAM_CAPSULE, 0) : NULL;
    Py_XDECREF(module);
    if (api && (api->abi != FASTADAM_ABI || api->size < sizeof(fastadam_api))) {
        PyErr_Format(PyExc_ImportError,
                     "this module was compiled for ABI %d of fastadam, with a table of %d bytes; fastadam %s has ABI %d "
                     "and %d bytes: install a newer fastadam, or compile the module for this one",
                     FASTADAM_ABI, (int)sizeof(fastadam_api), api->version, (int)api->abi, (int)api->size);
        return NULL;
    }
    return api;
}

#ifdef __cplusplus
}
#endif
#endif
