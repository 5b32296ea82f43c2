// Lists the driver calls of a program, in order: what a host does between the kernels of a loop.
//
//     T=/usr/local/cuda/targets/x86_64-linux
//     cc -shared -fPIC driver_calls.c -o driver_calls.so -I$T/include -L$T/lib -Wl,-rpath,$T/lib -lcupti
//     CUDA_INJECTION64_PATH=$PWD/driver_calls.so DRIVER_CALLS=calls.txt PROGRAM
//
// The driver loads the library that CUDA_INJECTION64_PATH names when it starts. A line is a call and how often it follows itself.

#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *out;
static const char *last;
static unsigned long times;

static void write_last(void) {
    if (last != NULL && out != NULL) {
        fprintf(out, "%lu %s\n", times, last);
        fflush(out);
    }
}

static void CUPTIAPI called(void *user, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *data) {
    const CUpti_CallbackData *call = data;
    (void)user, (void)domain, (void)id;
    if (call->callbackSite != CUPTI_API_ENTER) return;
    if (last != NULL && strcmp(last, call->functionName) == 0) {
        times++;
        return;
    }
    write_last();
    last = call->functionName;
    times = 1;
}

int InitializeInjection(void) {
    static CUpti_SubscriberHandle subscriber;
    const char *path = getenv("DRIVER_CALLS");
    out = path == NULL ? stderr : fopen(path, "w");
    if (out == NULL) {
        fprintf(stderr, "DRIVER_CALLS=%s cannot be written\n", path);
        return 0;
    }
    if (cuptiSubscribe(&subscriber, called, NULL) != CUPTI_SUCCESS ||
        cuptiEnableDomain(1, subscriber, CUPTI_CB_DOMAIN_DRIVER_API) != CUPTI_SUCCESS) {
        fprintf(stderr, "CUPTI does not tell of driver calls here\n");
        return 0;
    }
    atexit(write_last);
    return 1;
}
