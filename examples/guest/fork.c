/* Clones this machine as fork() copies a process, and tells in each machine which one it is.
 * build: cc -o fork fork.c      usage: fork [COUNT [FILE]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char answer[65537]; /* A line has at most 64 KiB. */

/* A call is a line, and so is its answer. */
static void call(int agent, const char *line)
{
    size_t length = 0, written = 0, size = strlen(line);
    ssize_t count;
    for (; written < size; written += count)
        if ((count = write(agent, line + written, size - written)) < 0)
            perror("fork: call gc-agent"), exit(107);
    do {
        count = read(agent, answer + length, sizeof answer - 1 - length);
        if (count <= 0)
            fprintf(stderr, "fork: gc-agent has gone\n"), exit(107);
        length += count;
    } while (answer[length - 1] != '\n');
    answer[length] = 0;
    if (strncmp(answer, "{\"error\":", 9) == 0)
        fprintf(stderr, "fork: %s", answer), exit(atoi(strstr(answer, "\"code\":") + 7));
}

int main(int argc, char **argv)
{
    struct sockaddr_un path = { AF_UNIX, "/run/gridcentric/agent.sock" };
    int agent = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(agent, (struct sockaddr *)&path, sizeof path) < 0)
        return perror("fork: reach gc-agent"), 107;

    const char *memory = "from before";
    char line[64];
    snprintf(line, sizeof line, "{\"verb\":\"clone\",\"args\":{\"count\":%d}}\n", argc > 1 ? atoi(argv[1]) : 1);
    call(agent, line); /* Every machine goes on here, with all that this program had. */

    int vmid = atoi(strstr(answer, "\"vmid\":") + 7);
    char *clones = strdup(strstr(answer, "\"clones\":[") + 10);
    call(agent, "{\"verb\":\"my-ip\"}\n");
    FILE *told = argc > 2 ? fopen(argv[2], "w") : stdout;
    if (!told)
        return perror("fork: open FILE"), 2;
    fprintf(told, "%d %.*s %s", vmid, (int)strcspn(answer + 7, "\""), answer + 7, memory);
    *strchr(clones, ']') = 0;
    for (char *clone = strtok(clones, ","); clone; clone = strtok(NULL, ","))
        fprintf(told, " %s", clone);
    fprintf(told, "\n");
    return fclose(told) ? 5 : 0;
}
