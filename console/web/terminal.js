// The terminal: xterm.js at one end of a WebSocket, the gateway's ssh at the other. The page has
//   <div id="terminal" data-socket="PATH" data-form-key="KEY"></div>, <p id="terminal-state" role="status"></p>,
//   <button id="terminal-again" hidden>, <a id="terminal-close"> and <input id="terminal-reader" type="checkbox">.
// This script needs the nonce of the page's style-src.
'use strict';

// A paste goes in pieces, and only a few at a time, so that other messages do not wait for all of it.
const PIECE = 16 * 1024;
const AHEAD = 4 * PIECE;
const PAUSE = 10; // Milliseconds.
// How often the gateway is told that the user is there, in milliseconds.
const USE_PERIOD = 20000;
const THEMES = {
  light: {
    foreground: '#1c2128', background: '#ffffff', cursor: '#1c2128', cursorAccent: '#ffffff', selectionBackground: '#b6d5ff',
    black: '#1c2128', red: '#b3202b', green: '#116329', yellow: '#7a5200', blue: '#0a58ca', magenta: '#7a3fd1', cyan: '#11686e',
    white: '#d0d7de', brightBlack: '#57606a', brightRed: '#c9252f', brightGreen: '#1a7534', brightYellow: '#8a5d00',
    brightBlue: '#0b65d8', brightMagenta: '#8a4be0', brightCyan: '#14747b', brightWhite: '#ffffff',
  },
  dark: {
    foreground: '#e4e8ee', background: '#11151b', cursor: '#e4e8ee', cursorAccent: '#11151b', selectionBackground: '#2f4f7a',
    black: '#2d333b', red: '#ff7b72', green: '#56d364', yellow: '#e3b341', blue: '#6cb0ff', magenta: '#d2a8ff', cyan: '#56d4dd',
    white: '#c9d1d9', brightBlack: '#8b949e', brightRed: '#ffa198', brightGreen: '#7ee787', brightYellow: '#f2cc60',
    brightBlue: '#9ccbff', brightMagenta: '#e2c5ff', brightCyan: '#8be6ec', brightWhite: '#ffffff',
  },
};

// xterm.js makes style elements and style attributes. The page's policy refuses the former without its nonce, and the
// latter always, but not the same style as a property.
const { nonce } = document.currentScript;
const createElement = document.createElement.bind(document);
document.createElement = (name, ...rest) => {
  const element = createElement(name, ...rest);
  if (name === 'style') {
    element.nonce = nonce;
  }
  return element;
};
const { setAttribute } = Element.prototype;
Element.prototype.setAttribute = function (name, value) {
  if (name === 'style') {
    this.style.cssText = value;
  } else {
    setAttribute.call(this, name, value);
  }
};

const place = document.getElementById('terminal');
const state = document.getElementById('terminal-state');
const again = document.getElementById('terminal-again');
const reader = document.getElementById('terminal-reader');
const dark = matchMedia('(prefers-color-scheme: dark)');
const theme = () => (dark.matches ? THEMES.dark : THEMES.light);

const terminal = new Terminal({
  theme: theme(),
  fontFamily: 'ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
  fontSize: 14,
  // With less, the row below hides underscores in some fonts.
  lineHeight: 1.2,
  scrollback: 5000,
  // Programs choose colours without knowing ours.
  minimumContrastRatio: 4.5,
  // What a host calls a link is text here: it may lead elsewhere than it says.
  linkHandler: { activate() {} },
});
const fit = new FitAddon.FitAddon();
terminal.loadAddon(fit);
terminal.open(place);
fit.fit();
dark.addEventListener('change', () => { terminal.options.theme = theme(); });

const address = new URL(place.dataset.socket, location.href);
address.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
const socket = new WebSocket(address, ['terminal', place.dataset.formKey]);
socket.binaryType = 'arraybuffer';
const encoder = new TextEncoder();
let why = '';

function send(message) {
  if (socket.readyState === WebSocket.OPEN) {
    socket.send(message);
  }
}

const pieces = [];

function sendBytes(bytes) {
  const first = pieces.length === 0;
  for (let at = 0; at < bytes.length; at += PIECE) {
    pieces.push(bytes.subarray(at, at + PIECE));
  }
  if (first) {
    sendPieces();
  }
}

function sendPieces() {
  while (pieces.length > 0 && socket.bufferedAmount < AHEAD) {
    send(pieces.shift());
  }
  if (pieces.length > 0) {
    setTimeout(sendPieces, PAUSE);
  }
}

const sendSize = () => send(JSON.stringify({ size: [terminal.cols, terminal.rows] }));

socket.addEventListener('open', () => {
  sendSize();
  state.textContent = 'Connected.';
  terminal.focus();
});
socket.addEventListener('message', ({ data }) => {
  if (typeof data === 'string') {
    why = JSON.parse(data).end ?? why;
  } else {
    // The gateway sends no more than what is taken in time.
    terminal.write(new Uint8Array(data), () => send(JSON.stringify({ taken: data.byteLength })));
  }
});
socket.addEventListener('close', () => {
  state.textContent = why || 'The connection to the gateway is lost.';
  state.classList.add('ended');
  terminal.options.disableStdin = true;
  terminal.options.cursorBlink = false;
  again.hidden = false;
  again.focus();
});

terminal.onData((text) => sendBytes(encoder.encode(text)));
terminal.onBinary((text) => sendBytes(Uint8Array.from(text, (character) => character.charCodeAt(0))));
terminal.onResize(sendSize);
new ResizeObserver(() => fit.fit()).observe(place);

// What is sent does not tell whether the user is there: a terminal answers questions of programs, too.
let used = 0;
function use() {
  if (Date.now() - used > USE_PERIOD) {
    used = Date.now();
    send(JSON.stringify({ used: true }));
  }
}
for (const event of ['keydown', 'paste', 'pointerdown']) {
  place.addEventListener(event, use, { capture: true });
}

terminal.attachCustomKeyEventHandler((event) => {
  if (event.ctrlKey && event.key === 'F6') {
    // Tab belongs to the shell, so that another key has to lead out.
    if (event.type === 'keydown') {
      document.getElementById('terminal-close').focus();
    }
    return false;
  }
  // With something marked, Ctrl+C copies it.
  return !(event.ctrlKey && !event.shiftKey && event.key === 'c' && terminal.hasSelection());
});
again.addEventListener('click', () => location.reload());
reader.addEventListener('change', () => {
  terminal.options.screenReaderMode = reader.checked;
  terminal.focus();
});
