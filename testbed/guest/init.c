/*
 * PID 1 of the testbed's emulated host (L1).
 *
 * Purpose: load the SELinux policy, leave kernel_t by executing itself once more
 *          (its file is init_exec_t, so the second life is init_t), start the rc
 *          script and reap orphans for ever.
 * Trust:   test equipment; runs as root inside the emulated machine only.
 * Caller:  the initramfs, which has mounted /, /proc, /sys and /dev.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#define RC "/usr/libexec/testbed/rc"

static void die(const char *what)
{
    dprintf(2, "testbed init: %s: %s\n", what, strerror(errno));
    _exit(1); /* PID 1 gone: the kernel panics, panic=-1 ends the machine */
}

static int run(char *const argv[])
{
    int status;
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        execv(argv[0], argv);
        die(argv[0]);
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            die("waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

int main(int argc, char **argv)
{
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    if (argc < 2 || strcmp(argv[1], "labelled") != 0) {
        char *load[] = {"/sbin/load_policy", "-i", NULL};
        char *again[] = {argv[0], "labelled", NULL};
        if (run(load) != 0)
            die("load_policy -i"); /* an L1 without a policy must not look alive */
        execv(argv[0], again);
        die("re-exec");
    }

    /* The initramfs' console belongs to a file system nobody else may use: label /dev
     * first, then take the console and /dev/null of this one. */
    char *label[] = {"/sbin/restorecon", "-R", "/dev", NULL};
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    open("/dev/null", O_RDWR);
    dup2(0, 1);
    dup2(0, 2);
    run(label);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    setsid();
    pid_t rc = fork();
    if (rc < 0)
        die("fork");
    if (rc == 0) {
        char *script[] = {RC, NULL};
        setsid();
        execv(RC, script);
        die(RC);
    }
    for (;;)
        if (wait(NULL) < 0 && errno == ECHILD)
            pause();
}
