/* Loads, uses and unloads the library repeatedly. Before each dlclose, no instance and no log
 * callback remains. unload.c has the programs that leave some behind. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

typedef int32_t (*logcb_t)(int32_t code, char *message);

static int32_t ignore_line(int32_t code, char *message)
{
    (void)message;
    return code;
}

static void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);

    if (found == NULL) {
        fprintf(stderr, "%s\n", dlerror());
    }
    return found;
}

static int use(void *library)
{
    void *(*init)(void) = (void *(*)(void))symbol(library, "aiot_tunnel_init");
    void *(*start)(void *) = (void *(*)(void *))symbol(library, "aiot_tunnel_start");
    int32_t (*deinit)(void **) = (int32_t(*)(void **))symbol(library, "aiot_tunnel_deinit");
    int32_t (*add)(void *, char *, void *) =
        (int32_t(*)(void *, char *, void *))symbol(library, "aiot_tunnel_add");
    int32_t (*set_logcb)(logcb_t) = (int32_t(*)(logcb_t))symbol(library, "aiot_tunnel_set_logcb");
    char id[] = "t1", host[] = "127.0.0.1", port[] = "1", path[] = "/", token[] = "hush-t";
    char *params[] = {host, port, path, token};
    pthread_t thread;
    void *handle;

    CHECK(init && start && deinit && add && set_logcb);
    CHECK(set_logcb(ignore_line) == 0);
    handle = init();
    CHECK(handle != NULL);
    CHECK(add(handle, id, params) == 0);
    CHECK(pthread_create(&thread, NULL, start, handle) == 0);
    CHECK(deinit(&handle) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(set_logcb(NULL) == 0);
    return 0;
}

int main(int argc, char **argv)
{
    int i;

    CHECK(argc == 2);
    for (i = 0; i < 50; i++) {
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);

        if (library == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        CHECK(use(library) == 0);
        CHECK(dlclose(library) == 0);
    }
    return 0;
}
