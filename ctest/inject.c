/*
 * Makes calls of the C library fail. Load it with LD_PRELOAD.
 *
 * A program arms it with inject_arm (found with dlsym), or the environment does:
 * INJECT=FUNCTION:ERRNO:SKIP:TIMES, for example INJECT=socket:24:0:3. SKIP calls succeed, the next
 * TIMES calls fail with that error, and later calls succeed again. Only one function is armed.
 */
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/msg.h>
#include <sys/socket.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char armed[32];
static int error, skip, times, calls, failed;

void inject_arm(const char *function, int code, int skipped, int failing)
{
    pthread_mutex_lock(&lock);
    snprintf(armed, sizeof(armed), "%s", function);
    error = code;
    skip = skipped;
    times = failing;
    calls = failed = 0;
    pthread_mutex_unlock(&lock);
}

/* Number of calls of the armed function since it was armed, and how many of them failed. */
void inject_counts(int *all, int *failing)
{
    pthread_mutex_lock(&lock);
    *all = calls;
    *failing = failed;
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void from_environment(void)
{
    const char *text = getenv("INJECT");
    char function[32];
    int code, skipped, failing;

    if (text != NULL &&
        sscanf(text, "%31[^:]:%d:%d:%d", function, &code, &skipped, &failing) == 4) {
        inject_arm(function, code, skipped, failing);
    }
}

/* The error with which this call of the function is to fail, or 0. */
static int fails(const char *function)
{
    int code = 0;

    pthread_mutex_lock(&lock);
    if (strcmp(armed, function) == 0) {
        calls++;
        if (skip > 0) {
            skip--;
        } else if (times > 0) {
            times--;
            failed++;
            code = error;
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}

/* Defines a function that returns -1 and sets errno. Parameters: as declared, as passed on. */
#define INJECT(result, name, parameters, arguments)                                                \
    result name parameters                                                                         \
    {                                                                                              \
        static result(*real) parameters;                                                           \
        int code = fails(#name);                                                                   \
                                                                                                   \
        if (code != 0) {                                                                           \
            errno = code;                                                                          \
            return -1;                                                                             \
        }                                                                                          \
        if (real == NULL) {                                                                        \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                             \
        }                                                                                          \
        return real arguments;                                                                     \
    }

INJECT(int, socket, (int domain, int type, int protocol), (domain, type, protocol))
INJECT(int, connect, (int fd, const struct sockaddr *address, socklen_t length),
       (fd, address, length))
INJECT(int, eventfd, (unsigned int value, int flags), (value, flags))
INJECT(int, poll, (struct pollfd *fds, nfds_t count, int timeout), (fds, count, timeout))
INJECT(ssize_t, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
INJECT(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
INJECT(ssize_t, recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags))
INJECT(ssize_t, msgrcv, (int id, void *message, size_t size, long type, int flags),
       (id, message, size, type, flags))
INJECT(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t length),
       (fd, level, name, value, length))

/*
 * Memory. dlsym may call these functions, so the real ones are taken by their other names, which the
 * GNU C library has. Before anything is armed, no call is counted: the dynamic linker makes some.
 */
#ifdef __GLIBC__
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

void *malloc(size_t size)
{
    if (fails("malloc") != 0) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    if (fails("malloc") != 0) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    if (fails("malloc") != 0) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(old, size);
}
#endif

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*routine)(void *),
                   void *argument)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    int code = fails("pthread_create");

    if (code != 0) {
        return code;
    }
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    }
    return real(thread, attributes, routine, argument);
}
