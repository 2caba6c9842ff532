/* A child process started while tunnels run inherits none of the library's descriptors. */
#include "harness.h"

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs in the child: 0 if it has no socket, pipe, event or poll descriptor. */
static int inherited(void)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    int found = 0;

    CHECK(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        char path[300], target[300];
        ssize_t length;

        snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
        length = readlink(path, target, sizeof(target) - 1);
        if (length < 0 || atoi(entry->d_name) <= STDERR_FILENO) {
            continue;
        }
        target[length] = '\0';
        if (strncmp(target, "socket:", 7) == 0 || strncmp(target, "anon_inode:", 11) == 0 ||
            strncmp(target, "pipe:", 5) == 0) {
            fprintf(stderr, "the child has %s: %s\n", path, target);
            found = 1;
        }
    }
    closedir(dir);
    return found;
}

static void check_child(const char *program)
{
    int status = 0;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        execl(program, program, "child", (char *)NULL);
        _exit(127);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    device_t device;
    char id[16];
    int i;

    if (argc > 1) {
        return inherited();
    }
    device_open(&device);
    device_start(&device);
    for (i = 0; i < 5; i++) {
        snprintf(id, sizeof(id), "t%d", i);
        CHECK_CODE(add(&device, id, "idle"), STATE_SUCCESS);
        recorded(&device.events, i);
    }
    /* This tunnel stays in its handshake. */
    CHECK_CODE(add(&device, "hang", "hang"), STATE_SUCCESS);
    for (i = 0; i < 20; i++) {
        check_child(argv[0]);
    }
    device_close(&device);
    return 0;
}
