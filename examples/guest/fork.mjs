// Clones this machine as fork() copies a process, and tells in each machine which one it is.
// usage: node fork.mjs [COUNT [FILE]]
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { createInterface } from 'node:readline';

class Agent {
    // The guest's agent: a call is a line, and so is its answer.
    static async connect(path = '/run/gridcentric/agent.sock') {
        const agent = new Agent();
        agent.socket = createConnection(path);
        await once(agent.socket, 'connect');
        agent.lines = createInterface({ input: agent.socket })[Symbol.asyncIterator]();
        return agent;
    }

    async call(verb, args) {
        this.socket.write(JSON.stringify({ verb, args }) + '\n');
        const { value: line, done } = await this.lines.next();
        if (done) throw Object.assign(new Error('gc-agent has gone'), { exitCode: 107 });
        const { ok, error } = JSON.parse(line);
        if (error) throw Object.assign(new Error(error.message), { exitCode: error.code });
        return ok;
    }
}

async function main(count = '1', file = undefined) {
    const agent = await Agent.connect();
    const memory = 'from before';
    // Every machine goes on here, with all that this program had.
    const { vmid, clones, failed } = await agent.call('clone', { count: Number(count) });
    for (const [clone, reason] of failed) console.error(`clone ${clone} was not started: ${reason}`);
    const told = [vmid, await agent.call('my-ip'), memory, ...clones].join(' ') + '\n';
    if (file) writeFileSync(file, told);
    else process.stdout.write(told);
    agent.socket.end();
}

main(...process.argv.slice(2)).catch((error) => {
    console.error(`fork.mjs: ${error.message}`);
    process.exit(error.exitCode ?? 1);
});
